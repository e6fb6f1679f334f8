"""From a picture to a surface: the lifting contract, the embedded lifter, meshes and their pictures."""
