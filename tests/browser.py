"""Pages as a browser draws them: what is lost, unread or wider than the window."""

import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (390, 1280)  # of a telephone and of a desk
SECONDS = 300  # that all pages may take on a machine that has other work to do

# One page shows all others, each in a frame of its own, and writes down what is wrong with them.
HARNESS = """<!doctype html><body><script>
const PAGES = %s, WIDTHS = %s, faults = {};
function tell(page, fault) {
  const list = faults[page] ??= [];
  if (!list.includes(fault)) list.push(fault);
}
function show(page, width) {
  return new Promise(done => {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 800px; border: 0`;
    frame.onload = () => { look(page, width, frame.contentDocument); frame.remove(); done(); };
    frame.src = page;
    document.body.append(frame);
  });
}
function look(page, width, shown) {
  const wide = shown.documentElement.scrollWidth;
  if (wide > width) tell(page, `at ${width} pixels: the page is ${wide} wide`);
  for (const image of shown.images)
    if (!image.naturalWidth) tell(page, "no picture: " + image.getAttribute("src"));
  for (const formula of shown.querySelectorAll("math")) {
    const box = formula.getBoundingClientRect();
    if (formula.textContent.includes("\\\\")) tell(page, "a formula with a backslash");
    if (!box.width || !box.height) tell(page, "a formula without a size");
  }
}
(async () => {
  for (const page of PAGES) for (const width of WIDTHS) await show(page, width);
  await fetch("/report", {method: "POST", body: JSON.stringify(faults)});
})();
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and the page that looks at its pages; passes on what that page reports."""

    def __init__(self, *args, harness, reports, **settings):
        self.harness, self.reports = harness.encode(), reports
        super().__init__(*args, **settings)

    def do_GET(self):
        if self.path != "/harness.html":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.harness)

    def do_POST(self):
        self.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def faults(folder, names, profile):
    """{page: what is wrong} of pages of a folder, by their paths; skips where there is no browser.

    profile: an empty folder for the browser's own files.
    """
    command = next(filter(None, map(shutil.which, NAMES)), None)
    if command is None:
        pytest.skip("there is no browser")
    reports = queue.Queue()
    harness = HARNESS % (json.dumps(names), json.dumps(WIDTHS))
    handler = functools.partial(Handler, directory=folder, harness=harness, reports=reports)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [command, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
            + [f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/harness.html"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return reports.get(timeout=SECONDS)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
