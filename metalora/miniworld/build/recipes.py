"""What `make miniworld` trains: every number of the shipped weights' recipe stands here."""

from metalora.miniworld.build.clip import ClipRecipe
from metalora.miniworld.build.face import FaceRecipe
from metalora.miniworld.build.flux import FluxRecipe
from metalora.miniworld.build.loop import Plan
from metalora.miniworld.build.vae import VaeRecipe

VAE = VaeRecipe(plan=Plan(steps=2600))
VAE_ROWS = {"64x64": 8000}

FACE = FaceRecipe(plan=Plan(steps=2000))
CLIP = ClipRecipe(plan=Plan(steps=1350))
FLUX = FluxRecipe(plan=Plan(steps=2400, decay=0.4), muon_rate=5e-3)
CORPUS = {"people": 3600, "photos": 20, "seed": 0}
PORTRAITS = {"people": 3600, "photos": 3, "seed": 5}
