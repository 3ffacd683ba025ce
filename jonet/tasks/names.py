"""The names of all tasks, without jax; a new task is a file of its name here, and a name in this list."""

TASKS = (
    *("deepsdf", "deepsdf_completion", "occnet", "onet_points", "onet_voxels", "onet_images", "onet_unconditional"),
    "purify",
)
