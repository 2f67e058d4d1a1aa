"""A text-to-image world that this project owns: scenes of known factors, their pictures and captions, and a model.

| module | what |
|---|---|
| `scene` | the factors and their hierarchy; scenes as values; the variants A–E |
| `render` | scenes as pixels and object masks |
| `caption` | scenes as words; the tokenizer |
| `pipeline` | the trained model, a diffusers `StableDiffusionPipeline` |
| `checker`, `judge` | two independent readers of pictures; `reading` is what they return |
| `train` (`text`, `optimizer`, `packing`, `export`), `train_judge` | how the weights came about |
| `evaluate` | what they reach |
"""
