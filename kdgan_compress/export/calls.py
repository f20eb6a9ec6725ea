"""How to call a detector file from five languages: a few lines each, for the card."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """What the lines depend on.

    Attributes:
        file: Name of the detector.
        channels: 1 or 3.
        takes_bytes: uint8 (1, H, W, C), or else floats (1, C, H, W) from 0 to 1.
        frame: The one height and width that it takes; None for any.
        threshold: Its own.
    """

    file: str
    channels: int
    takes_bytes: bool
    frame: tuple[int, int] | None
    threshold: float

    @property
    def shape(self) -> tuple[str, str, str, str]:
        """The input's, with the variables ``height`` and ``width`` where it takes any."""
        height, width = map(str, self.frame or ("height", "width"))
        channels = str(self.channels)
        return ("1", height, width, channels) if self.takes_bytes else ("1", channels, height, width)

    @property
    def pixels(self) -> str:
        """What the variable ``pixels`` holds, in words."""
        size = f"{self.frame[0]}×{self.frame[1]}" if self.frame else "height × width"
        if not self.takes_bytes:
            planes = "one plane" if self.channels == 1 else "the red plane, the green, the blue"
            return f"{size} floats from 0 to 1 a channel: {planes}, row by row"
        return f"{size} bytes, row by row" + ("" if self.channels == 1 else ", each pixel red, green, blue")


def python(call: Call) -> str:
    """With numpy, Pillow and onnxruntime."""
    mode = "L" if call.channels == 1 else "RGB"
    resize = f".resize({call.frame[::-1]}, Image.Resampling.BILINEAR)" if call.frame else ""
    if call.takes_bytes:
        pixels = "numpy.asarray(photo)[None" + (", :, :, None]" if call.channels == 1 else "]")
    else:
        planes = "[None, None]" if call.channels == 1 else ".transpose(2, 0, 1)[None]"
        pixels = f"numpy.asarray(photo, numpy.float32){planes} / 255"
    return f"""\
import numpy
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{call.file}")
photo = ImageOps.exif_transpose(Image.open("photo.png")).convert("{mode}"){resize}
pixels = {pixels}
score, is_anomaly = session.run(["score", "is_anomaly"], {{"image": pixels}})
print(score[0], is_anomaly[0])"""


def cpp(call: Call) -> str:
    """With ONNX Runtime's C++ header."""
    kind = "uint8_t" if call.takes_bytes else "float"
    return f"""\
#include <array>
#include <onnxruntime_cxx_api.h>

// std::vector<{kind}> pixels: {call.pixels}
Ort::Env env;
Ort::Session session(env, ORT_TSTR("{call.file}"), Ort::SessionOptions{{}});
auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
std::array<int64_t, 4> shape{{{", ".join(call.shape)}}};
auto image = Ort::Value::CreateTensor<{kind}>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
const char* inputs[] = {{"image"}};
const char* outputs[] = {{"score", "is_anomaly"}};
auto results = session.Run(Ort::RunOptions{{nullptr}}, inputs, &image, 1, outputs, 2);
float score = results[0].GetTensorData<float>()[0];
bool is_anomaly = results[1].GetTensorData<bool>()[0];"""


def kotlin(call: Call) -> str:
    """For Android, with the package ``onnxruntime-android``; the file lies in the app's assets."""
    shape = ", ".join(part if part.isdigit() else f"{part}.toLong()" for part in call.shape)
    kind, last = ("ByteBuffer", ", OnnxJavaType.UINT8") if call.takes_bytes else ("FloatBuffer", "")
    return f"""\
import ai.onnxruntime.*

// pixels: a direct {kind}, {call.pixels}
val environment = OrtEnvironment.getEnvironment()
val session = environment.createSession(assets.open("{call.file}").readBytes())
OnnxTensor.createTensor(environment, pixels, longArrayOf({shape}){last}).use {{ image ->
    session.run(mapOf("image" to image)).use {{ results ->
        val score = (results["score"].get().value as FloatArray)[0]
        val isAnomaly = (results["is_anomaly"].get().value as BooleanArray)[0]
    }}
}}"""


def swift(call: Call) -> str:
    """For iOS and macOS, with ONNX Runtime's Swift package, which reads no booleans."""
    kind = ".uInt8" if call.takes_bytes else ".float"
    stem = call.file.removesuffix(".onnx")
    return f"""\
import OnnxRuntimeBindings

// pixels: NSMutableData, {call.pixels}
let environment = try ORTEnv(loggingLevel: .warning)
let path = Bundle.main.path(forResource: "{stem}", ofType: "onnx")!
let session = try ORTSession(env: environment, modelPath: path, sessionOptions: nil)
let shape = [{", ".join(call.shape)}].map {{ NSNumber(value: $0) }}
let image = try ORTValue(tensorData: pixels, elementType: {kind}, shape: shape)
let results = try session.run(withInputs: ["image": image], outputNames: ["score"], runOptions: nil)
let score = try results["score"]!.tensorData().bytes.load(as: Float.self)
let isAnomaly = score > {call.threshold:.9g}"""


def javascript(call: Call) -> str:
    """For browsers and Node, with the package ``onnxruntime-web``."""
    kind, array = ("uint8", "Uint8Array") if call.takes_bytes else ("float32", "Float32Array")
    return f"""\
import * as ort from "onnxruntime-web";

// pixels: {array}, {call.pixels}
const session = await ort.InferenceSession.create("{call.file}");
const image = new ort.Tensor("{kind}", pixels, [{", ".join(call.shape)}]);
const results = await session.run({{ image }});
console.log(results.score.data[0], Boolean(results.is_anomaly.data[0]));"""


LANGUAGES = {
    "Python": ("python", python),
    "C++": ("cpp", cpp),
    "Kotlin": ("kotlin", kotlin),
    "Swift": ("swift", swift),
    "JavaScript": ("js", javascript),
}
"""Each language's name for people and for the code block, and its lines."""
