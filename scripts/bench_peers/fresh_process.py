"""The original's shape: a new Python process that loads torch and a ResNet-18 for one image, and ends.

    /usr/bin/python3 fresh_process.py FILE

Debian's python3-torch and python3-torchvision. The weights are random: no package registry has the genuine ones, and
what they are does not change what they cost. Preprocessing as in the original: native size, values from 0 to 1.
"""

import sys

import torch
from PIL import Image
from torchvision import models, transforms

torch.set_num_threads(1)
model = models.resnet18()
model.eval()
image = transforms.ToTensor()(Image.open(sys.argv[1]).convert("RGB")).unsqueeze(0)
with torch.no_grad():
    scores = model(image)
print(f"({sys.argv[1]}, {int(scores.argmax())})")
