"""The simulated study: scenes, their pictures and meshes, a simulated brain that looks at them, and the tiny base models."""
