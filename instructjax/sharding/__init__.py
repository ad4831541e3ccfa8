"""Where arrays lie when there is more than one device: meshes, and rules from names to axes."""

from instructjax.sharding.mesh import AXES, choose_mesh, make_mesh, parse_mesh, size_mesh
from instructjax.sharding.rules import ShardingRules

__all__ = ["AXES", "ShardingRules", "choose_mesh", "make_mesh", "parse_mesh", "size_mesh"]
