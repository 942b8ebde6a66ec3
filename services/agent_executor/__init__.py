"""agent-executor: runs AI-agent jobs and never loses one."""

import os

# Before anything imports langgraph, which reads it at import: checkpoints are deserialised by an allow-list.
# langgraph's default calls whatever constructor a row of the database names.
os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"
