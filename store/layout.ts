/** What files are called in the store. Apart from the code that reads them, which brings a YAML parser along. */

/** In the folder of a model. */
export const MODEL_YAML = "model.yaml"
/** The file in a model's folder, as `bentoml.onnx` names it. */
export const SAVED_MODEL = "saved_model.onnx"
/** Beside it in a model's folder: examples of what the model answers. BentoML carries it along and does not read it. */
export const SELFTEST_JSON = "selftest.json"

/** In the folder of a Bento. */
export const BENTO_YAML = "bento.yaml"
/** Beside it: what the server would otherwise make anew at each start (prepared.ts). */
export const PREPARED_DIR = "prepared"
