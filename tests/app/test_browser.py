"""The page in headless Chromium: every tab, as a visitor meets it. One server and one browser for all of these tests.

Screenshots go into the tests' temporary folder (SEGUE_SCREENSHOTS names another one).
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("gradio", reason="gradio is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
MAKE_MS = 90_000  # a busy machine may take long; on a quiet one nothing takes 5 s
expect = sync_api.expect
expect.set_options(timeout=MAKE_MS)
# The samples that a browser decodes from what a player's download holds: its seconds.
DECODED = """async (url) => {
    const data = await (await fetch(url)).arrayBuffer()
    return (await new OfflineAudioContext(1, 8, 44100).decodeAudioData(data)).duration
}"""


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("SEGUE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def address(served):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "segue.cli.main", "app", str(served), "--port", str(port), "--device", "cpu",
               "--max-upload-mb", "1"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    while not (said and "segue app: http://127.0.0.1" in said[-1]):
        said.append(server.stdout.readline())
        assert said[-1], said  # it has ended
    yield f"http://127.0.0.1:{port}/"
    server.send_signal(signal.SIGTERM)
    rest = server.communicate(timeout=120)[0]
    assert server.returncode == 0 and "Traceback" not in rest, rest


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def visit(browser, address):
    """A visitor's page; `page.elsewhere` lists what it asked of other hosts, and got."""
    page = browser.new_context(viewport={"width": 1380, "height": 1000}).new_page()
    page.elsewhere = []
    page.on("requestfinished", lambda r: page.elsewhere.append(r.url) if re.match("http", r.url)
            and not r.url.startswith(address) else None)  # fmt: skip
    page.set_default_timeout(MAKE_MS)
    page.goto(address)
    expect(page.get_by_role("tab")).to_have_count(5)
    expect(page.locator("#generate-model input")).to_have_value(re.compile("first"))
    return page


@pytest.fixture(scope="module")
def page(browser, address):
    page = visit(browser, address)
    yield page
    assert page.elsewhere == []


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def seconds_of(page, player):
    """Decoded length of what a player holds."""
    link = page.locator(f"{player} a[download]").first
    link.wait_for(state="attached")
    return page.evaluate(DECODED, link.get_attribute("href"))


def refused(page, words):
    """A red message in place, which is then closed."""
    message = page.locator(".toast-body.error, .toast-wrap .error").first
    expect(message).to_contain_text(words)
    assert "Traceback" not in page.content()
    message.locator(".toast-close").first.click()
    expect(message).to_be_hidden()


def ask(page, prompt, takes=1):
    page.locator("#generate-prompt textarea").fill(prompt)
    page.get_by_label("number input for Takes").fill(str(takes))
    page.get_by_label("number input for Steps").first.fill("3")
    page.locator("#generate-start").click()


def test_generate(page, shots):
    ask(page, "drum snare hard", takes=2)
    expect(page.locator("#generate-words")).to_contain_text("2 of 2 takes: drum snare hard")
    assert seconds_of(page, "#take-0") > 0.4 and seconds_of(page, "#take-1") > 0.4
    page.screenshot(path=shots / "generate.png")
    page.get_by_role("button", name="Again with this seed").nth(1).click()
    expect(page.locator("#generate-words")).to_contain_text("1 of 1 takes")
    expect(page.locator("#generate-seed input")).to_have_value("1")
    ask(page, "   ")
    refused(page, "an empty prompt")


def test_two_visitors_at_once(page, browser, address):
    other = visit(browser, address)
    expect(other.locator("#take-0")).to_be_hidden()
    ask(page, "ambi choir")
    ask(other, "bass hit low")
    for visitor, prompt in ((other, "bass hit low"), (page, "ambi choir")):
        expect(visitor.locator("#generate-words")).to_contain_text(f"1 of 1 takes: {prompt}")
    mine, others = (v.locator("#take-0 a[download]").first.get_attribute("href") for v in (page, other))
    assert "bass" in others and "bass" not in mine and "bass hit" not in page.content()
    assert other.elsewhere == []
    other.close()


def test_files_of_the_server_are_not_served(page, address, served):
    for path in ("/etc/passwd", served / "first" / "config.json", served / "first" / "log.jsonl"):
        for route in ("gradio_api/file=", "file="):
            assert page.request.get(f"{address}{route}{path}").status in (403, 404)


def test_upsample(page, shots, tmp_path):
    soundfile.write(tmp_path / "narrow.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 8000)
    (tmp_path / "no-sound.wav").write_text("these are words")
    tab(page, "Upsample")
    page.locator("#upsample-files input[type=file]").set_input_files(
        [tmp_path / "no-sound.wav", tmp_path / "narrow.wav"]
    )
    expect(page.locator("#upsample-files")).to_contain_text("narrow")
    page.locator("#upsample-start").click()
    expect(page.locator("#upsample-words")).to_contain_text("1 of 2 files, 1 could not be used")
    expect(page.get_by_text("cannot be used")).to_be_visible()
    assert 0.9 < seconds_of(page, "#after-1") < 1.1
    page.screenshot(path=shots / "upsample.png", full_page=True)


def test_edit(page, shots, tmp_path):
    tab(page, "Edit")
    page.locator("#edit-prompt textarea").fill("a bell")
    page.locator("#edit-start").click()
    refused(page, "No sound yet")
    (tmp_path / "no-sound.wav").write_text("these are words")
    page.locator("#edit-upload input[type=file]").set_input_files(tmp_path / "no-sound.wav")
    refused(page, "no-sound.wav")
    tone = 0.3 * np.sin(np.arange(8000) / 5) * np.linspace(1, 0, 8000)
    soundfile.write(tmp_path / "tone.wav", tone, 8000)
    page.locator("#edit-upload").get_by_label("Clear").click()
    expect(page.locator("#edit-upload input[type=file]")).to_have_count(1)
    page.locator("#edit-upload input[type=file]").set_input_files(tmp_path / "tone.wav")
    outline = page.locator("#edit-outline img")
    outline.wait_for()
    page.get_by_label("Replace a range").check()
    fields = [page.get_by_label(name, exact=True) for name in ("From (s)", "To (s)")]
    for share, field in zip((0.4, 0.7), fields):
        box = outline.bounding_box()
        outline.click(position={"x": share * box["width"], "y": box["height"] / 2})
        expect(field).not_to_have_value("0")
    begin, end = (float(field.input_value()) for field in fields)
    assert 0.3 < begin < 0.4 and 0.6 < end < 0.75
    page.locator("#edit-start").click()
    assert 0.9 < seconds_of(page, "#edit-made") < 1.1
    page.screenshot(path=shots / "edit.png", full_page=True)


def test_a_large_upload_is_refused_in_place(page, tmp_path):
    (tmp_path / "large.wav").write_bytes(bytes(2 << 20))
    tab(page, "Upsample")
    page.locator("#upsample-files").get_by_label("Clear").click()
    page.locator("#upsample-files input[type=file]").set_input_files(tmp_path / "large.wav")
    refused(page, re.compile("size", re.I))


def choose(page, field, name):
    page.locator(f"{field} input").click()
    page.get_by_role("option", name=name).first.click()


def test_runs(page, shots):
    tab(page, "Runs")
    page.locator("#runs-show").click()
    refused(page, "no run is chosen")
    choose(page, "#runs-chosen", "first")
    page.locator("#runs-show").click()
    expect(page.locator("#runs-shown")).to_contain_text("validation loss ↓")
    assert page.locator("#runs-shown audio").count() >= 6
    loaded = "a => a.duration > 0 || new Promise(r => a.addEventListener('loadedmetadata', () => r(a.duration > 0)))"
    assert page.locator("#runs-shown audio").first.evaluate(loaded)
    page.screenshot(path=shots / "runs.png", full_page=True)


def test_train(page, shots):
    tab(page, "Train")
    page.locator("#train-source textarea, #train-source input").fill("/etc")
    page.locator("#train-check").click()
    refused(page, "not in the folders of this page")
    page.locator("#train-source textarea, #train-source input").fill("sounds")
    page.locator("#train-check").click()
    expect(page.locator("#train-found")).to_contain_text("every file can be used")
    page.locator("#train-source textarea, #train-source input").fill("cache")
    choose(page, "#train-recipe", "static-uniform")
    page.locator("#train-name textarea, #train-name input").fill("second")
    page.locator("#train-examples input").fill("16")
    settings = "model.preset=dit-tiny train.batch_size=4 train.validation_clips=2 train.samples=1"
    page.locator("#train-more textarea, #train-more input").fill(settings)
    page.locator("#train-plan").click()
    expect(page.locator("#train-found")).to_contain_text("peak memory about")
    page.locator("#train-start").click()
    expect(page.locator("#train-words")).to_contain_text("second: finished", timeout=240_000)
    expect(page.locator("#train-live")).to_contain_text("Newest sounds")
    page.screenshot(path=shots / "train.png", full_page=True)
    page.locator("#train-start").click()
    refused(page, "holds a run already")
