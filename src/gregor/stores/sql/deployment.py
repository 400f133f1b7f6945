"""Which deployment a database belongs to, and the key that its nodes share.

Functions that take a connection run inside the transaction of their caller.
"""

from gregor.core.deployment import Deployment
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.schema import read_schema, running_nodes

REVISION = "0009"
"""The schema that has a deployment."""


def has_deployments(connection: DatabaseConnection) -> bool:
    """Whether the schema of this database has a place for its deployment."""
    schema = read_schema(connection)
    return schema is not None and schema.has(REVISION)


def read_deployment(connection: DatabaseConnection) -> Deployment | None:
    """The deployment of this database. None: its schema is older, or it is a shard that
    `gregor migrate` has not yet told of which deployment it is."""
    if not has_deployments(connection):
        return None
    rows = connection.execute(statements.DEPLOYMENT)
    return _deployment_in(rows[0]) if rows else None


def read_common_deployment(connection: DatabaseConnection) -> Deployment | None:
    """The deployment of this database; None also while a node runs whose code is older."""
    deployment = read_deployment(connection)
    if deployment is not None and any(
        node.revision < REVISION for node in running_nodes(connection, REVISION)
    ):
        return None
    return deployment


def keep_deployment(connection: DatabaseConnection, deployment: Deployment) -> Deployment:
    """Make this database part of the deployment, unless it is of one. Returns which it is of."""
    _write(connection, statements.INSERT_DEPLOYMENT, deployment)
    (row,) = connection.execute(statements.DEPLOYMENT)
    return _deployment_in(row)


def replace_deployment(connection: DatabaseConnection, deployment: Deployment) -> None:
    """Make this database part of the deployment, whichever it was of before. Idempotent."""
    _write(connection, statements.REPLACE_DEPLOYMENT, deployment)


def _deployment_in(row: statements.DeploymentRow) -> Deployment:
    return Deployment(row.id, bytes.fromhex(row.key))


def _write(
    connection: DatabaseConnection, statement: statements.Statement[None], deployment: Deployment
) -> None:
    connection.execute(statement, id=deployment.id, key=deployment.key.hex())
