"""Example code that calls a detector file from five languages, for the model card."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputSpec:
    """The input of a detector file, as far as the examples depend on it.

    Attributes:
        file: File name of the detector.
        channels: 1 or 3.
        is_uint8: True: uint8 (1, H, W, C); False: floats (1, C, H, W) from 0 to 1.
        input_size: Fixed height and width; None for any.
        threshold: Default threshold of the file.
        has_map: Whether the file has an anomaly map in units of the score.
    """

    file: str
    channels: int
    is_uint8: bool
    input_size: tuple[int, int] | None
    threshold: float
    has_map: bool = False

    @property
    def shape(self) -> tuple[str, str, str, str]:
        """The input shape; ``height`` and ``width`` are variables if any size is accepted."""
        height, width = map(str, self.input_size or ("height", "width"))
        channels = str(self.channels)
        return ("1", height, width, channels) if self.is_uint8 else ("1", channels, height, width)

    @property
    def pixels(self) -> str:
        """What the variable ``pixels`` contains, as text."""
        size = f"{self.input_size[0]}×{self.input_size[1]}" if self.input_size else "height × width"
        if not self.is_uint8:
            planes = "one plane" if self.channels == 1 else "the red plane, the green, the blue"
            return f"{size} floats from 0 to 1 per channel: {planes}, row by row"
        return f"{size} bytes, row by row" + ("" if self.channels == 1 else ", each pixel red, green, blue")


def python(spec: InputSpec) -> str:
    """Python, with numpy, Pillow and onnxruntime."""
    mode = "L" if spec.channels == 1 else "RGB"
    resize = f".resize({spec.input_size[::-1]}, Image.Resampling.BILINEAR)" if spec.input_size else ""
    if spec.is_uint8:
        pixels = "numpy.asarray(photo)[None" + (", :, :, None]" if spec.channels == 1 else "]")
    else:
        planes = "[None, None]" if spec.channels == 1 else ".transpose(2, 0, 1)[None]"
        pixels = f"numpy.asarray(photo, numpy.float32){planes} / 255"
    run = 'score, is_anomaly = session.run(["score", "is_anomaly"], {"image": pixels})'
    if spec.has_map:
        run = 'score, is_anomaly, anomaly_map = session.run(["score", "is_anomaly", "anomaly_map"], {"image": pixels})'
    return f"""\
import numpy
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{spec.file}")
photo = Image.open("photo.jpg")
photo.draft(None, (1024, 1024))  # decodes a large JPEG at a reduced size
photo = ImageOps.exif_transpose(photo).convert("{mode}"){resize}
pixels = {pixels}
{run}
print(score[0], is_anomaly[0])"""


def cpp(spec: InputSpec) -> str:
    """C++, with ONNX Runtime's header."""
    kind = "uint8_t" if spec.is_uint8 else "float"
    return f"""\
#include <array>
#include <onnxruntime_cxx_api.h>

// std::vector<{kind}> pixels: {spec.pixels}
Ort::Env env;
Ort::Session session(env, ORT_TSTR("{spec.file}"), Ort::SessionOptions{{}});
auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
std::array<int64_t, 4> shape{{{", ".join(spec.shape)}}};
auto image = Ort::Value::CreateTensor<{kind}>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
const char* inputs[] = {{"image"}};
const char* outputs[] = {{"score", "is_anomaly"}};
auto results = session.Run(Ort::RunOptions{{nullptr}}, inputs, &image, 1, outputs, 2);
float score = results[0].GetTensorData<float>()[0];
bool is_anomaly = results[1].GetTensorData<bool>()[0];"""


def kotlin(spec: InputSpec) -> str:
    """Kotlin for Android, with the package ``onnxruntime-android``; the file is in the app's assets."""
    shape = ", ".join(part if part.isdigit() else f"{part}.toLong()" for part in spec.shape)
    kind, last = ("ByteBuffer", ", OnnxJavaType.UINT8") if spec.is_uint8 else ("FloatBuffer", "")
    return f"""\
import ai.onnxruntime.*

// pixels: a direct {kind}, {spec.pixels}
val environment = OrtEnvironment.getEnvironment()
val session = environment.createSession(assets.open("{spec.file}").readBytes())
OnnxTensor.createTensor(environment, pixels, longArrayOf({shape}){last}).use {{ image ->
    session.run(mapOf("image" to image)).use {{ results ->
        val score = (results["score"].get().value as FloatArray)[0]
        val isAnomaly = (results["is_anomaly"].get().value as BooleanArray)[0]
    }}
}}"""


def swift(spec: InputSpec) -> str:
    """Swift for iOS and macOS, with ONNX Runtime's Swift package, which cannot read boolean outputs."""
    kind = ".uInt8" if spec.is_uint8 else ".float"
    stem = spec.file.removesuffix(".onnx")
    return f"""\
import OnnxRuntimeBindings

// pixels: NSMutableData, {spec.pixels}
let environment = try ORTEnv(loggingLevel: .warning)
let path = Bundle.main.path(forResource: "{stem}", ofType: "onnx")!
let session = try ORTSession(env: environment, modelPath: path, sessionOptions: nil)
let shape = [{", ".join(spec.shape)}].map {{ NSNumber(value: $0) }}
let image = try ORTValue(tensorData: pixels, elementType: {kind}, shape: shape)
let results = try session.run(withInputs: ["image": image], outputNames: ["score"], runOptions: nil)
let score = try results["score"]!.tensorData().bytes.load(as: Float.self)
let isAnomaly = score > {spec.threshold:.9g}"""


def javascript(spec: InputSpec) -> str:
    """JavaScript for browsers and Node, with the package ``onnxruntime-web``."""
    kind, array = ("uint8", "Uint8Array") if spec.is_uint8 else ("float32", "Float32Array")
    return f"""\
import * as ort from "onnxruntime-web";

// pixels: {array}, {spec.pixels}
const session = await ort.InferenceSession.create("{spec.file}");
const image = new ort.Tensor("{kind}", pixels, [{", ".join(spec.shape)}]);
const results = await session.run({{ image }});
console.log(results.score.data[0], Boolean(results.is_anomaly.data[0]));"""


LANGUAGES = {
    "Python": ("python", python),
    "C++": ("cpp", cpp),
    "Kotlin": ("kotlin", kotlin),
    "Swift": ("swift", swift),
    "JavaScript": ("js", javascript),
}
"""Name of a language → its tag on a Markdown code block, and the function that writes the example."""
