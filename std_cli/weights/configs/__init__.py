"""The config files of a model's folder: read, typed and bounded before a library sees them.

A folder may come from anyone. So every value that shapes a network, allocates memory or chooses
code is checked here: whole numbers are whole numbers, sizes have bounds, parts are of the classes
that std runs, and nothing names code, other files or addresses. Keys that no class here knows are
left as they are: diffusers ignores them. Whether the sizes are those of the weights is checked from
the headers of the weight files, after this: building the classes is cheap only within these bounds.

The fields are those of diffusers' and transformers' own classes, with their defaults where others
depend on them.

    base       bounds that several files share, and the reading of one file
    networks   UNet, VAE, motion adapter
    encoders   CLIP's encoders, tokenizers, the image processor
    folder     the folder's own files, and all of them against each other
"""
