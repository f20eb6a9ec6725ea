"""What the tests of the export share: tiny generators whose every weight matters, and a session of a graph."""

import collections

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn
from torch.nn.functional import interpolate

from kdgan_compress.evaluation import weights_sha256
from kdgan_compress.export.graph.assemble import IOSpec, add_pre_and_postprocessing, canonicalize_names
from kdgan_compress.export.graph.passes import run_passes
from kdgan_compress.export.graph.trace import trace
from kdgan_compress.gans import Architecture, build

THRESHOLD = 0.1
TRACES: dict[tuple, ir.Model] = {}


def architecture(family="ede", norm="batch", image_channels=1, **changed) -> Architecture:
    """Features of 32 numbers before a latent of 40, so that it collapses and z2 keeps more coordinates than z1."""
    described = {"channels": (1, 2), "image_size": 16, "latent_size": 40} | changed
    num_clusters = 3 if family == "cvgad" else None
    return Architecture(family=family, norm=norm, image_channels=image_channels, num_clusters=num_clusters, **described)


def prepare(generator: nn.Module, seed: int = 0) -> nn.Module:
    """Weights by which no layer dies out, norms and running statistics far from (0, 1)."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.normal_(0, 1, generator=noise).mul_(1.5 / module.weight[0].numel() ** 0.5)
            elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
                module.weight.normal_(1, 0.4, generator=noise)
                module.bias.normal_(0, 0.5, generator=noise)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.7, generator=noise)
                module.running_var.uniform_(0.2, 5, generator=noise)
        if hasattr(generator, "score_scale"):
            generator.score_scale.copy_(torch.tensor([0.5, 0.02]))
    return generator.eval()


def generator_of(described: Architecture, seed: int = 0) -> nn.Module:
    return prepare(build(described, seed=seed).generator, seed)


def trace_once(generator: nn.Module, image_format, x_hat=None, opset=18) -> ir.Model:
    """A copy of a trace that was taken before, if it was: torch's exporter takes a second for each."""
    key = (type(generator), weights_sha256(generator), image_format, x_hat, opset)
    if key not in TRACES:
        TRACES[key] = trace(generator, image_format, x_hat, opset)
    return TRACES[key].clone()


def photos(count: int, height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Half of them noise, half a ramp with a square on it; uint8 (count, height, width, channels)."""
    noise = np.random.default_rng((seed, height, width))
    images = noise.integers(0, 256, (count, height, width, channels)).astype(np.float64)
    ramp = np.linspace(0, 1, width)[None, :, None] * np.linspace(1, 0.3, height)[:, None, None]
    for image in images[::2]:
        image[:] = ramp * noise.uniform(50, 255, channels)
        top, left = noise.integers(0, height // 2 + 1), noise.integers(0, width // 2 + 1)
        image[top : top + height // 3, left : left + width // 3] = noise.uniform(0, 255, channels)
    return images.astype(np.uint8)


def resized(images: np.ndarray, side: int) -> torch.Tensor:
    """As training sees them, (N, C, side, side) from −1 to 1."""
    levels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    return interpolate(levels, (side, side), mode="bilinear", antialias=True, align_corners=False) / 127.5 - 1


def by_torch(generator: nn.Module, images: np.ndarray, side: int = 16) -> np.ndarray:
    with torch.no_grad():
        return generator.anomaly_score(resized(images, side)).numpy()


def session_of(model: ir.Model | onnx.ModelProto) -> onnxruntime.InferenceSession:
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def detector_of(core: ir.Model, described, names=(), interface: IOSpec | None = None) -> tuple[ir.Model, dict]:
    """A copy of a core, rewritten and with pixels before and a verdict behind it; what was found to change."""
    model = core.clone()
    counts = run_passes(model, names)
    add_pre_and_postprocessing(model, described, THRESHOLD, interface or IOSpec())
    if "scale" in names:
        counts |= run_passes(model, {"scale"})
    canonicalize_names(model)
    return model, counts


def operators(model: ir.Model) -> collections.Counter:
    return collections.Counter(node.op_type for node in model.graph)


def num_floats(model: ir.Model) -> int:
    """Weights, without the threshold, scalars, and what says axes and shapes."""
    constants = [value.const_value for value in model.graph.initializers.values()]
    return sum(each.size for each in constants if each.dtype.is_floating_point() and each.shape.rank() > 0)


def from_nodes(nodes, constants, image_shape, inputs=()) -> ir.Model:
    """A graph of ONNX nodes from ``images`` to ``score``, with every shape inferred."""
    given = [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, image_shape), *inputs]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        given,
        [onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(numbers, name) for name, numbers in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return ir.from_proto(model)


def run(model: ir.Model, images: np.ndarray, **more) -> np.ndarray:
    return session_of(model).run(["score"], {"images": images} | more)[0]
