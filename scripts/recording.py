"""Record the outage in the README: a real training run whose MLflow server is killed, as docs/images/outage.gif.

``python scripts/recording.py [FILE]``

The lines are what the programs print, at the times at which they print them; only pauses above a second are shortened.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "images" / "outage.gif"
COLUMNS, ROWS, SIZE = 88, 24, 15
LONGEST_PAUSE, LAST_PAUSE = 1.0, 4.0
PAPER, INK = "#0d1117", "#e6edf3"
COLOURS = {"$": "#7ee787", "#": "#ffa657"}  # of lines that begin so

SESSION = """
    import os, signal, socket, subprocess, sys, time, urllib.request
    from pathlib import Path

    PORT = 5000
    while socket.socket().connect_ex(("127.0.0.1", PORT)) == 0:
        PORT += 1
    URI = os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{PORT}"
    BIN = Path(sys.executable).parent

    def start():
        command = [BIN / "mlflow", "server", "--port", str(PORT), "--workers", "1"]
        server = subprocess.Popen(command, stdout=open("log", "a"), stderr=subprocess.STDOUT, start_new_session=True)
        while True:
            try:
                urllib.request.urlopen(URI + "/health", timeout=1)
                return server
            except OSError:
                time.sleep(0.1)

    def kill(server):
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    server = start()
    print("$ cat train.py")
    print(open("train.py").read().split("# --")[0].rstrip())
    print()
    print("$ python train.py")
    import train
    train.learn(URI, lambda: kill(server), start)
    print("$ tracking-callbacks status")
    print(subprocess.run([BIN / "tracking-callbacks", "status"], capture_output=True, text=True).stdout)
    kill(train.server)
"""
TRAIN = """
    from stable_baselines3 import PPO
    from tracking_callbacks.sb3 import MLflowSB3Callback

    tracking = MLflowSB3Callback(registered_model_name="cartpole-ppo")
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=512, device="cpu")
    # --
    import time
    from stable_baselines3.common.callbacks import BaseCallback
    import torch

    torch.set_num_threads(1)

    class Story(BaseCallback):
        def __init__(self, uri, kill, start):
            super().__init__()
            self.uri, self.kill, self.start, self.began = uri, kill, start, time.monotonic()

        def _on_rollout_end(self):
            global server
            step, fps = self.num_timesteps, 512 / (time.monotonic() - self.began)
            if step == 5 * 512:
                print("# kill -9 of the MLflow server")
                self.kill()
            if step == 13 * 512:
                print("# the MLflow server is back")
                server = self.start()
            report = tracking.run.report()
            trouble = report.last_error.split("(")[-1].rstrip(")")
            print(f"step {step:5}   {fps:5.0f} steps/s   {report.pending:4} entries wait   {trouble}")
            self.began = time.monotonic()

        def _on_step(self):
            return True

    def learn(uri, kill, start):
        agent.learn(20 * 512, callback=[tracking, Story(uri, kill, start)])
        print(tracking.run.flush())
"""


def record() -> list[tuple[float, str]]:
    """Run the session; return its lines and when each was printed, in seconds from the first."""
    lines: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(textwrap.dedent(TRAIN).lstrip())
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", "COLUMNS": str(COLUMNS)}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        command = [sys.executable, "-c", textwrap.dedent(SESSION)]
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as session:
            assert session.stdout is not None
            for line in session.stdout:
                lines.append((time.monotonic(), line.rstrip()))
        if session.returncode:
            sys.exit("the session has failed")
    return [(at - lines[0][0], line) for at, line in lines]


def draw(lines: list[str], font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw the last lines of a terminal."""
    width, height = round(font.getlength("M")), round(SIZE * 1.3)
    image = Image.new("RGB", (COLUMNS * width + 24, ROWS * height + 24), PAPER)
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(lines[-ROWS:]):
        pen.text((12, 12 + row * height), line, font=font, fill=COLOURS.get(line[:1], INK))
    return image.quantize(64)


def main(output: Path) -> int:
    """Record the session and write it as an animated GIF."""
    font = ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSansMono.ttf"), SIZE)
    recorded = record()
    shown: list[str] = []
    frames: list[Image.Image] = []
    pauses: list[int] = []
    for number, (at, line) in enumerate(recorded):
        shown += textwrap.wrap(line, COLUMNS) or [""]
        pause = recorded[number + 1][0] - at if number + 1 < len(recorded) else LAST_PAUSE
        if pause > 0.02:
            frames.append(draw(shown, font))
            pauses.append(round(1000 * (min(pause, LONGEST_PAUSE) if number + 1 < len(recorded) else pause)))
    with contextlib.suppress(FileNotFoundError):
        output.unlink()
    frames[0].save(output, save_all=True, append_images=frames[1:], duration=pauses, loop=0, optimize=True)
    print(f"{output}: {len(frames)} frames, {sum(pauses) / 1000:.0f} s, {output.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else OUTPUT))
