"""What every stage of the training agrees on: the networks that are trained."""

from dataclasses import replace

from everframe.export.taehv import TaehvConfig
from everframe.export.wan import DEMO as TRANSFORMER

# The encoder never runs in a stream, so width costs it nothing there: its last stage has to say 4 frames × 8×8 pixels ×
# 3 colours in 16 numbers. The decoder is wider only in its last layer, where 8 % of its time buys half as many channels.
AUTOENCODER = TaehvConfig(latent_channels=16, encoder_widths=(32, 64, 96), decoder_widths=(96, 64, 32, 48), lead=0)

# The first demo's, on whose latents the short-trained models of the study were trained.
FIRST_AUTOENCODER = replace(AUTOENCODER, encoder_widths=(32, 48, 48), decoder_widths=(96, 64, 32, 32))

# For the study of sink-collapse (docs/study.md): 96 heads in place of 16, so narrow that its weights stay below 10 MB.
MANY_HEADED = replace(TRANSFORMER, dim=192, layers=12, heads=8, ffn_dim=192)

CELL = 8  # pixels of a latent's side

__all__ = ["AUTOENCODER", "CELL", "FIRST_AUTOENCODER", "MANY_HEADED", "TRANSFORMER"]
