"""The design of the legacy system: a new Python process that loads torch and a ResNet-18 for each image.

    /usr/bin/python3 fresh_process.py FILE

Uses Debian's python3-torch and python3-torchvision. The weights are random, because no package registry has the genuine
ones; their values do not change the cost. Preprocessing is that of the legacy system: native size, values from 0 to 1.
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
