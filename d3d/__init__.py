"""A reproducibility study of D3D: Distilled 3D Networks for Video Action Recognition (arXiv 1812.08249)."""
