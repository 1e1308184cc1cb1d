"""Puts what the examples made into the gallery: pictures with fewer colours, and pieces of sound.

python docs/gallery.py out   # the folder in which the examples, run with --out, left what they made
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

PICTURES = {  # in the folder -> in docs/pictures
    "digits-mlp.png": "digits.png",
    "sigmoid-before.png": "curves-before.png",
    "sigmoid-after.png": "curves-after.png",
    "sigmoid-gradients.png": "gradient-flow.png",
    "backprop-network.png": "backprop-network.png",
    "speech.png": "speech.png",
}
WIDTH, COLOURS = 1000, 32
PROMPT, SECONDS = "demo-instruct", 3.0


def smaller(source: Path, target: Path) -> None:
    """A picture of at most `WIDTH` pixels and `COLOURS` colours."""
    with Image.open(source) as image:
        rgb = image.convert("RGB")
        rgb.thumbnail((WIDTH, 4 * WIDTH))
        rgb.quantize(COLOURS).save(target, optimize=True)


def speech(run: Path, made: Path) -> None:
    """The beginning of a prompt that the run has not seen, by Griffin-Lim and by the network, to hear and to see."""
    from examples.vocoder import data, mel
    from examples.vocoder.evaluate import synthesizers
    from examples.vocoder.samples import draw_spectrograms, write_wav

    config, rows = synthesizers([run], 0, "spectral")
    recording = data.load(made / "speech", config).test[PROMPT][: int(SECONDS * config.sample_rate)]
    spectrum = np.asarray(mel.log_mel(config, jnp.asarray(recording)))
    waves = {
        "recording": recording,
        "Griffin-Lim 60": rows["Griffin-Lim 60"](spectrum),
        "network": rows["network"](spectrum),
    }
    for name, wave in waves.items():
        write_wav(
            DOCS / "sounds" / f"speech-{name.lower().replace(' ', '-')}.wav", np.asarray(wave), config.sample_rate
        )
    draw_spectrograms(made / "speech.png", config, waves)


if __name__ == "__main__":
    made = Path(sys.argv[1])
    if (made / "vocoder").exists():
        speech(made / "vocoder", made)
    for name, target in PICTURES.items():
        if (made / name).exists():
            smaller(made / name, DOCS / "pictures" / target)
            print(f"pictures/{target}: {(DOCS / 'pictures' / target).stat().st_size / 1000:.0f} kB")
