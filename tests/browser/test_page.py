"""The page in headless Chromium: real files, the real runtime, a server that knows nothing of it, no other host.

Skipped where no Chromium, chromedriver, selenium or onnxruntime-web is found. The runtime is KDGAN_ORT_WEB (an unpacked
npm package or its .tgz), else the one that `export --web` keeps in the user's cache.
"""

import base64
import functools
import hashlib
import json
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, PngImagePlugin
from tile_detector import write_tile_detector

from kdgan_compress.export.packaging.web import ORT_WEB_VERSION, write_page
from kdgan_compress.export.validation.golden import write_golden
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.images import read_image

selenium = pytest.importorskip("selenium", reason="the page's test needs selenium: pip install selenium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "kdgan-compress")
RUNTIME = Path(os.environ.get("KDGAN_ORT_WEB") or CACHE / f"onnxruntime-web-{ORT_WEB_VERSION}").absolute()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="found no Chromium: apt install chromium"),
    pytest.mark.skipif(DRIVER is None, reason="found no chromedriver: apt install chromium-driver"),
    pytest.mark.skipif(not RUNTIME.exists(), reason=f"found no onnxruntime-web at {RUNTIME}: set KDGAN_ORT_WEB"),
]

CHANNELS = {"rgb": 3, "grey": 1, "float": 3}
INPUT_SIZE = (24, 40)
THRESHOLD = 0.07
SIZE = 8
FRAME = (48, 64)
MAP_THRESHOLD = 30.0
TOLERANCE = 1e-4


def tiny_detector(kind: str) -> onnx.ModelProto:
    """Score: how far 8×8 pixels are from their 3×3 means. RGB has maps, grey none, float a fixed size and maps."""
    channels = CHANNELS[kind]
    floats = kind == "float"
    shape = (1, channels, *INPUT_SIZE) if floats else ("N", "H", "W", channels)
    kernel = np.full((channels, 1, 3, 3), 1 / 9, np.float32)
    constants = {"size": np.int64([1, channels, SIZE, SIZE]), "kernel": kernel, "all": np.int64([1, 2, 3])}
    constants |= {"scale": np.float32(255), "colours": np.int64([1]), "threshold": np.float32(THRESHOLD)}
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 1, 2, 3] if floats else [0, 3, 1, 2]),
        helper.make_node("Resize", ["planes", "", "", "size"], ["resized"], mode="linear", antialias=1),
        helper.make_node("Identity" if floats else "Div", ["resized"] if floats else ["resized", "scale"], ["x"]),
        helper.make_node("Conv", ["x", "kernel"], ["x_hat"], group=channels, pads=[1, 1, 1, 1]),
        helper.make_node("Sub", ["x", "x_hat"], ["residual"]),
        helper.make_node("Abs", ["residual"], ["error"]),
        helper.make_node("ReduceMean", ["error", "all"], ["score"], keepdims=0),
        helper.make_node("Greater", ["score", "threshold"], ["is_anomaly"]),
    ]
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("is_anomaly", TensorProto.BOOL, ["N"]),
    ]
    if kind != "grey":
        nodes.append(helper.make_node("ReduceMean", ["error", "colours"], ["anomaly_map"], keepdims=0))
        outputs.append(helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", SIZE, SIZE]))
    if kind == "rgb":
        nodes += [
            helper.make_node("Mul", ["x_hat", "scale"], ["bright"]),
            helper.make_node("Cast", ["bright"], ["bytes"], to=TensorProto.UINT8),
            helper.make_node("Transpose", ["bytes"], ["reconstruction"], perm=[0, 2, 3, 1]),
        ]
        outputs.append(helper.make_tensor_value_info("reconstruction", TensorProto.UINT8, ["N", SIZE, SIZE, channels]))
    if floats:
        nodes.append(helper.make_node("Identity", ["x_hat"], ["reconstruction"]))
        outputs.append(helper.make_tensor_value_info("reconstruction", TensorProto.FLOAT, ["N", channels, SIZE, SIZE]))
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT if floats else TensorProto.UINT8, shape),
        helper.make_tensor_value_info("threshold", TensorProto.FLOAT, []),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return model


class Oracle:
    """ONNX Runtime in Python on the same file."""

    def __init__(self, kind: str, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._kind = kind

    def __call__(self, pixels: np.ndarray) -> tuple[float, bool]:
        images = pixels[None]
        if self._kind == "float":
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
        score, is_anomaly = self._session.run(["score", "is_anomaly"], {"image": images})
        return float(score[0]), bool(is_anomaly[0])


def texture(height: int, width: int, channels: int, roughness: float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(height * width).normal(size=(height, width, channels))
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.clip(90 + 60 * (x * y)[..., None] + 60 * roughness * noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Four pages below one server's root, so each in a folder of its own; that of photos has a map over the picture."""
    root = tmp_path_factory.mktemp("site")
    oracles = {}
    for kind, channels in CHANNELS.items():
        model = root / f"{kind}.onnx"
        model.write_bytes(tiny_detector(kind).SerializeToString())
        oracles[kind] = Oracle(kind, model)
        cases: list[dict] = []
        for height, width in (INPUT_SIZE,) * 2 if kind == "float" else ((97, 64), (29, 37), (32, 32), (5, 7)):
            pixels = texture(height, width, channels, len(cases))
            score, is_anomaly = oracles[kind](pixels)
            case = {"height": height, "width": width, "channels": channels, "score": score, "is_anomaly": is_anomaly}
            cases.append(case | {"pixels": base64.b64encode(pixels.tobytes()).decode()})
        about = {
            "schema_version": 1,
            "detector": model.name,
            "name": f"tiny {kind}",
            "precision": "fp32",
            "cases": cases,
        }
        about |= {"file_sha256": hashlib.sha256(model.read_bytes()).hexdigest(), "tolerance": TOLERANCE}
        about |= {"input": "float" if kind == "float" else "uint8", "frame": INPUT_SIZE if kind == "float" else None}
        about |= {"image_channels": channels, "image_size": SIZE, "threshold": THRESHOLD, "threshold_rule": "a guess"}
        golden = root / f"{kind}.json"
        golden.write_text(json.dumps(about))
        write_page(root / "pages" / kind, model, golden, RUNTIME)

    photo = write_tile_detector(root / "photo.onnx", np.full((*FRAME, 3), 120.0), MAP_THRESHOLD, smoothing=3)
    write_golden(root / "photo.npz", root / "photo.json", Detector(photo), photo.name)
    write_page(root / "pages" / "photo", photo, root / "photo.json", RUNTIME)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield SimpleNamespace(root=root, oracles=oracles, origin=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    yield driver
    driver.quit()


class Page:
    """One page, opened afresh; at the end no request may have left the server and no error been logged."""

    def __init__(self, browser: webdriver.Chrome, site: SimpleNamespace, kind: str, query: str = "") -> None:
        for log in ("browser", "performance"):
            browser.get_log(log)
        self.browser, self.site = browser, site
        browser.get(f"{site.origin}/pages/{kind}/{query}")
        self.wait("document.documentElement.dataset.state === 'ready'")

    def js(self, expression: str):
        return self.browser.execute_script(f"return {expression}")

    def wait(self, expression: str):
        return WebDriverWait(self.browser, 60, 0.05).until(lambda _: self.js(expression), expression)

    def find(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def add(self, *paths: Path) -> list[dict]:
        """Choose files; their tiles' data when all are done."""
        have = self.js("document.querySelectorAll('.tile').length")
        self.find("#files").send_keys("\n".join(map(str, paths)))
        self.wait(f"document.querySelectorAll('.tile[data-verdict]').length === {have + len(paths)}")
        return self.js("[...document.querySelectorAll('.tile')].map(t => ({...t.dataset, text: t.innerText}))")[have:]

    def selftest(self) -> dict:
        return json.loads(self.wait("document.querySelector('#selftest-result').dataset.result"))

    def check_quiet(self) -> None:
        assert self.browser.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert any(url.endswith(".wasm") for url in urls)
        assert [url for url in urls if not url.startswith((self.site.origin, "data:", "blob:"))] == []


@pytest.mark.parametrize("kind", CHANNELS)
def test_scores_equal_the_golden_vectors(browser, site, kind):
    page = Page(browser, site, kind, "?selftest")
    result = page.selftest()
    cases = json.loads((site.root / f"{kind}.json").read_text())["cases"]
    assert result["scores"] == pytest.approx([case["score"] for case in cases], rel=TOLERANCE)
    assert result["max_relative_difference"] <= TOLERANCE
    assert result["passed"]
    assert result["verdicts_equal"]
    assert result["canvas_exact"]
    assert len({case["is_anomaly"] for case in cases}) == 2 or kind == "float"
    assert "Passed" in page.find("#selftest-result").text
    page.check_quiet()


def test_the_self_test_fails_on_another_score(browser, site):
    page = Page(browser, site, "grey")
    golden = site.root / "pages/grey/golden.json"
    before = golden.read_text()
    about = json.loads(before)
    about["cases"][1]["score"] *= 1.01
    try:
        golden.write_text(json.dumps(about))
        result = Page(browser, site, "grey", "?selftest").selftest()
    finally:
        golden.write_text(before)
    assert not result["passed"]
    assert result["max_relative_difference"] == pytest.approx(0.01 / 1.01, rel=1e-2)
    assert "Failed" in page.find("#selftest-result").text


@pytest.mark.parametrize("kind", ["rgb", "grey"])
def test_pictures_are_scored_as_the_device_scores_them(browser, site, tmp_path, kind):
    """A PNG with a gamma that Pillow passes over, one on its side, a smooth one, and a file that is no picture."""
    rough, smooth, side, broken = (tmp_path / name for name in ("rough.png", "smooth.png", "side.png", "broken.png"))
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", struct.pack(">I", 100_000))
    Image.fromarray(texture(97, 64, 3, 2)).save(rough, pnginfo=gamma)
    Image.fromarray(texture(300, 200, 3, 0)).save(smooth)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    Image.fromarray(texture(50, 31, 3)).save(side, exif=exif)
    broken.write_text("no picture")
    page = Page(browser, site, kind)
    tiles = page.add(rough, broken, side, smooth)
    assert [tile["name"] for tile in tiles] == ["rough.png", "broken.png", "side.png", "smooth.png"]
    assert tiles[1]["verdict"] == "error"
    assert "no picture" in tiles[1]["text"]
    for tile, path in zip((tiles[0], *tiles[2:]), (rough, side, smooth), strict=True):
        score, is_anomaly = site.oracles[kind](read_image(path, CHANNELS[kind]))
        assert float(tile["score"]) == pytest.approx(score, rel=TOLERANCE)
        assert tile["verdict"] == ("anomaly" if is_anomaly else "normal")
        assert float(tile["ms"]) > 0
    assert "50 × 31" in tiles[2]["text"]
    assert {tile["verdict"] for tile in tiles} == {"anomaly", "normal", "error"}
    assert float(page.find("#ms").text) > 0
    assert page.js("document.querySelectorAll('.tile [data-map]').length") == (6 if kind == "rgb" else 0)
    page.check_quiet()


def test_the_threshold_turns_verdicts(browser, site, tmp_path):
    Image.fromarray(texture(40, 40, 3, 2)).save(tmp_path / "rough.png")
    page = Page(browser, site, "rgb")
    (tile,) = page.add(tmp_path / "rough.png")
    slider, verdict = page.find("#threshold"), page.find(".tile .verdict")
    assert "anomaly" in verdict.text
    slider.send_keys(Keys.END)
    assert "normal" in verdict.text
    assert page.find("#num-anomalies").text == "0"
    slider.send_keys(Keys.HOME)
    assert "anomaly" in verdict.text
    number = page.find("#threshold-number")
    for factor, expected in ((1.001, "normal"), (0.999, "anomaly")):
        number.send_keys(Keys.CONTROL + "a")
        number.send_keys(repr(float(tile["score"]) * factor))
        assert expected in verdict.text
    page.find("#reset").click()
    assert float(number.get_property("value")) == THRESHOLD
    page.check_quiet()


def test_a_dropped_picture_of_another_size_is_told(browser, site):
    page = Page(browser, site, "float")
    browser.execute_script(
        """const canvas = new OffscreenCanvas(60, 30); canvas.getContext("2d").fillRect(10, 10, 9, 9);
        canvas.convertToBlob().then(blob => { const files = new DataTransfer();
        files.items.add(new File([blob], "dropped.png"));
        const init = {dataTransfer: files, bubbles: true, cancelable: true};
        document.querySelector("#drop").dispatchEvent(new DragEvent("drop", init)); })"""
    )
    page.wait("document.querySelector('.tile[data-score]')")
    note = page.find(".tile .note").text
    assert "60 × 30" in note
    assert "40 × 24" in note
    assert "transparent" in note
    assert page.js("document.querySelectorAll('.tile [data-map]').length") == 2


def alpha(page: Page, selector: str, x: float, y: float) -> int:
    """How opaque a canvas is at a place, given in parts of its width and height."""
    place = f"c.getContext('2d').getImageData({x} * c.width, {y} * c.height, 1, 1).data[3]"
    return page.js(f"(c => {place})(document.querySelector('{selector}'))")


def test_the_map_lies_over_the_picture(browser, site, tmp_path):
    """A bright square at the right: the map is strong there, until the threshold is far above it."""
    pixels = np.full((120, 160, 3), 120, np.uint8)
    pixels[40:70, 110:140] = 220
    Image.fromarray(pixels).save(tmp_path / "square.png")
    Image.fromarray(np.full((30, 40, 3), 121, np.uint8)).save(tmp_path / "plain.png")
    page = Page(browser, site, "photo", "?selftest")
    result = page.selftest()
    assert result["passed"]
    assert result["max_map_difference"] <= TOLERANCE
    assert "of maps" in page.find("#selftest-result").text
    tiles = page.add(tmp_path / "square.png", tmp_path / "plain.png")
    assert [tile["verdict"] for tile in tiles] == ["anomaly", "normal"]
    assert page.find("#legend").is_displayed()
    assert "\n" not in page.find("#legend").text.strip()
    assert page.js("document.querySelectorAll('.tile .map').length") == 0
    over = ".tile:nth-child({}) .overlay"
    assert alpha(page, over.format(1), 125 / 160, 55 / 120) > 100
    assert alpha(page, over.format(1), 0.2, 0.5) == 0
    assert alpha(page, over.format(2), 0.5, 0.5) == 0
    picture, overlay = (
        page.js(f"document.querySelector('.tile {name}').getBoundingClientRect().toJSON()")
        for name in (".view > canvas", ".overlay")
    )
    assert overlay == picture
    assert page.js("document.querySelector('.overlay').dataset.above") == "true"
    number = page.find("#threshold-number")
    number.send_keys(Keys.CONTROL + "a")
    number.send_keys("300")
    assert alpha(page, over.format(1), 125 / 160, 55 / 120) == 0
    assert page.js("document.querySelector('.overlay').dataset.above") == "false"
    page.find("#show-map").click()
    assert not page.find(".overlay").is_displayed()


def test_the_map_lies_over_the_camera(browser, site):
    page = Page(browser, site, "photo")
    page.find("#camera-button").click()
    page.wait("document.querySelector('#camera').dataset.frames > 2")
    assert page.js("document.querySelectorAll('#camera .overlay').length") == 1
    video, overlay = (
        page.js(f"document.querySelector('#camera {name}').getBoundingClientRect().toJSON()")
        for name in ("video", ".overlay")
    )
    assert overlay == video
    page.find("#camera-button").click()
    page.check_quiet()


def test_other_maps_stay_beside_the_picture(browser, site, tmp_path):
    Image.fromarray(texture(40, 40, 3)).save(tmp_path / "a.png")
    page = Page(browser, site, "rgb")
    page.add(tmp_path / "a.png")
    assert not page.find("#legend").is_displayed()
    assert page.js("document.querySelectorAll('.overlay').length") == 0
    assert page.js("document.querySelectorAll('.map').length") == 2


def test_the_camera_is_scored_live(browser, site):
    page = Page(browser, site, "grey")
    page.find("#camera-button").click()
    page.wait("document.querySelector('#camera').dataset.frames > 5")
    assert 0 < float(page.js("document.querySelector('#camera').dataset.score")) < 1
    assert page.js("document.querySelector('#camera').dataset.verdict") in ("normal", "anomaly")
    page.find("#camera-button").click()
    assert not page.find("#camera").is_displayed()
    assert page.js("document.querySelector('#video').srcObject") is None
    page.check_quiet()


def test_a_page_opened_from_disk_says_what_it_needs(browser, site):
    browser.get((site.root / "pages/rgb/index.html").as_uri())
    notice = browser.find_element(By.ID, "no-server")
    WebDriverWait(browser, 20, 0.1).until(lambda _: notice.is_displayed())
    assert "python -m http.server" in notice.text
    assert not browser.find_element(By.ID, "app").is_displayed()
