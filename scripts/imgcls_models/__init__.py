"""Makes model packages: a folder with ONNX files, `labels.txt` and `model.toml`.

Read in this order: `registry` (pinned downloads), `checkpoint` (weights out of a PyTorch file without
PyTorch), `network` (a small ONNX graph writer), `efficientnet_lite` and `resnet` (the two architectures),
`preprocess` (the reference pipeline that the Rust side must agree with), `calibration` and `variants`
(8-bit and half-precision files), `labels`, `package` (the folder itself).
"""
