"""Creates model packages: folders with ONNX files, `labels.txt` and `model.toml`.

The modules in reading order: `registry` (pinned downloads), `checkpoint` (reads weights of a PyTorch file without
PyTorch), `network` (a small ONNX graph writer), `efficientnet_lite` and `resnet` (the two architectures),
`preprocess` (the reference pipeline that the Rust code must agree with), `calibration`, `quantize`, `pixels`,
`features` and `variants` (8-bit and half-precision files), `labels`, `package` (writes the folder).
"""
