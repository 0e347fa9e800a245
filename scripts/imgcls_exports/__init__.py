"""Classifiers as other tools export them, and what those tools compute for an image; used by `scripts/check-models`.

The modules in reading order: `images` (what is classified), `references` (each framework's documented preprocessing,
with Pillow and numpy), `graphs` (changes EfficientNet-Lite into the graph that a tool would have written), `exports`
(the folders and files, each with the options of `imgcls model add` that it needs), `compare` (the differences),
`table`.

Nothing here may be derived from the program's own code: it is what the program is compared with.
"""
