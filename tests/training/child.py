"""A training process for the tests, as the command line makes one: see `runs.child`."""

import json
import resource
import sys

import jax


def main(order: dict) -> None:
    jax.config.update("jax_compilation_cache_dir", order["cache"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    from vit_jax.config import from_dict
    from vit_jax.training import train

    if "file_size_limit" in order:
        limit = order["file_size_limit"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        print(json.dumps(train(from_dict(order["config"]), order["workdir"])))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        print("modules:", *(m for m in ("tensorflow", "torch", "sklearn") if m in sys.modules))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
