"""Hides the real jsonschema from cloud-init at boot, and only then.

cloud-init checks its configuration against a schema when it can, and goes on when
it cannot. A node's configuration was checked before it was written to its disk;
`cloud-init schema`, typed by hand, does not see this file and checks it again.
"""

raise ImportError("not imported at boot")
