"""What `make miniworld` trains: every number of the shipped weights' recipe stands here."""

from dataclasses import replace

from metalora.miniworld.build.clip import ClipRecipe
from metalora.miniworld.build.decoder import DecoderRecipe
from metalora.miniworld.build.face import FaceRecipe
from metalora.miniworld.build.flux import FluxRecipe
from metalora.miniworld.build.loop import Plan
from metalora.miniworld.build.vae import VaeRecipe

CORPUS = {"people": 3600, "photos": 20, "seed": 0}
PORTRAITS = {"people": 3600, "photos": 3, "seed": 5}
VAE = VaeRecipe(plan=Plan(steps=2600))
VAE_ROWS = {"64x64": 8000}
DECODER = DecoderRecipe(plan=Plan(steps=3000))
FACE = FaceRecipe(plan=Plan(steps=2000))
CLIP = (
    ClipRecipe(plan=Plan(steps=1300, decay=0.4), heads=0, traits=1.0),
    ClipRecipe(plan=Plan(steps=3000, decay=0.4)),
    ClipRecipe(plan=Plan(steps=4600, decay=0.3)),
)
# As the shipped weights were driven: Muon's first rate was too low, a first end at step 2400 was followed by a
# continuation, and the second part halved the batch and weighted faces.
_FIRST = FluxRecipe(
    plan=Plan(steps=3100),
    schedule=(
        (0, 2.5e-5, 1.9e-5),
        (80, 2e-3, 1.5e-3),
        (1450, 2e-3, 1.5e-3),
        (1451, 1.977e-3, 1.483e-3),
        (1905, 1.031e-3, 7.73e-4),
        (1906, 2.573e-3, 7.72e-4),
        (2399, 5.2e-6, 1.6e-6),
        (2400, 6e-3, 2e-3),
        (2686, 6e-3, 2e-3),
        (2687, 5.157e-3, 1.719e-3),
        (3100, 0.0, 0.0),
    ),
    distill=((1728, 2400), (2921, 3100)),
)
_SECOND = replace(
    _FIRST,
    plan=Plan(steps=12600),
    batch=64,
    face_weight=5.0,
    schedule=((3100, 1e-3, 4e-4), (3200, 5e-3, 1.8e-3), (9275, 5e-3, 1.8e-3), (12600, 0.0, 0.0)),
    distill=((12100, 12600),),
)
# The rates had all but come to zero when guidance was learned: explicit guidance showed many more faces.
_THIRD = replace(
    _SECOND,
    plan=Plan(steps=13800),
    schedule=((12600, 1e-3, 4e-4), (12650, 2.5e-3, 9e-4), (13800, 0.0, 0.0)),
    distill=((12600, 13800),),
)
# Begun anew from the weights as they were shipped until then, to lead guidance away from a worse model; in fp32, not
# compiled, as it ran on cores without bf16.
_FOURTH = replace(
    _THIRD,
    plan=Plan(steps=16000),
    restart=13800,
    schedule=((13800, 5e-4, 2e-4), (13950, 3e-3, 1.1e-3), (15040, 3e-3, 1.1e-3), (16000, 0.0, 0.0)),
    distill=((13800, 16000),),
    without=(1,),
    between=(0.1, 0.75),
    compile=False,
)
FLUX = (_FIRST, _SECOND, _THIRD, _FOURTH)
