/** Iris as a service: rows of four measurements in, names of species and probabilities out. */
import { api, json, ndarray, runner, service } from "bentoctl/runtime"

const species = ["setosa", "versicolor", "virginica"]

interface Answer {
  labels: string[]
  probabilities: number[][]
}

const iris = runner("iris_clf:latest")

export const svc = service({
  name: "iris_classifier",
  runners: [iris],
  apis: [
    api({
      name: "classify",
      input: ndarray({ dtype: "float32", shape: [-1, 4] }),
      output: json<Answer>(),
      handler: async (rows) => {
        const { output_label: label, output_probability: probability } = await iris.run(rows)
        if (label?.dtype !== "int64" || probability?.dtype !== "float32") {
          throw new TypeError("iris_clf is not the model of this example: see train.py")
        }
        const classes = probability.shape[1] ?? 0
        return {
          labels: Array.from(label.data, (index) => species[Number(index)] ?? String(index)),
          probabilities: Array.from(label.data, (_, row) => [
            ...probability.data.subarray(row * classes, (row + 1) * classes),
          ]),
        }
      },
    }),
  ],
})
