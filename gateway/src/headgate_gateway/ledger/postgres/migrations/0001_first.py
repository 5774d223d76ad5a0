"""The first schema on PostgreSQL: nodes, chains, accounts, limits, windows, holds, records, claims.

Revision ID: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
phase = "expand"

_APPEND_ONLY = ("usage_records", "voids", "prices", "limits", "audit_log", "links")

_COUNTS = (
    "input", "cache_read", "cache_write", "output", "reasoning", "images", "audio_ms", "requests", "gpu_ms",
)  # fmt: skip

_FIRST = f"""
CREATE TABLE deployment (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    contracted text NOT NULL DEFAULT '0001',
    position_from bigint NOT NULL DEFAULT 0,
    pepper bytea
);
INSERT INTO deployment DEFAULT VALUES;
CREATE TABLE nodes (
    id text PRIMARY KEY,
    number integer GENERATED ALWAYS AS IDENTITY UNIQUE,
    epoch bigint NOT NULL,
    lost boolean NOT NULL DEFAULT false,
    heartbeat timestamptz NOT NULL
);
CREATE TABLE chains (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node text NOT NULL REFERENCES nodes (id),
    lane integer NOT NULL,
    UNIQUE (node, lane)
);
CREATE TABLE batches (
    chain integer NOT NULL,
    number bigint NOT NULL,
    token text NOT NULL,
    PRIMARY KEY (chain, number)
);
CREATE SEQUENCE window_ids INCREMENT BY 65536;
CREATE TABLE organizations (id text PRIMARY KEY, at_us bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE accounts (
    id text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('organization', 'project', 'key')),
    name text NOT NULL,
    parent text REFERENCES accounts (id),
    created_us bigint NOT NULL
);
CREATE INDEX accounts_by_parent ON accounts (parent);
CREATE UNIQUE INDEX accounts_by_name ON accounts (name, kind, coalesce(parent, '')) WHERE kind <> 'key';
CREATE TABLE counters (
    account text PRIMARY KEY,
    packed bytea NOT NULL,
    windows bigint[] NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE api_keys (
    id text PRIMARY KEY REFERENCES accounts (id),
    digest bytea NOT NULL UNIQUE,
    prefix text NOT NULL,
    scopes text NOT NULL,
    models text,
    max_output bigint,
    expires_us bigint NOT NULL,
    revoked_us bigint
);
CREATE TABLE prices (
    seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    chain integer NOT NULL,
    id text PRIMARY KEY,
    batch bigint NOT NULL,
    model text NOT NULL,
    scope text NOT NULL,
    source text NOT NULL,
    rates text NOT NULL,
    at_us bigint NOT NULL,
    digest bytea NOT NULL
);
CREATE TABLE limits (
    chain integer NOT NULL,
    id bigint PRIMARY KEY,
    batch bigint NOT NULL,
    account text NOT NULL,
    kind text NOT NULL,
    amount bigint,
    hard integer NOT NULL,
    timezone text NOT NULL,
    at_us bigint NOT NULL,
    window_id bigint,
    window_version bigint,
    digest bytea NOT NULL
);
CREATE TABLE windows (
    id bigint PRIMARY KEY,
    account text NOT NULL,
    kind text NOT NULL,
    start_us bigint NOT NULL,
    end_us bigint NOT NULL,
    limit_id bigint NOT NULL,
    amount bigint NOT NULL,
    hard integer NOT NULL,
    spent bigint NOT NULL,
    held bigint NOT NULL,
    cap bigint NOT NULL,
    version bigint NOT NULL,
    CONSTRAINT windows_not_negative CHECK (spent >= 0 AND held >= 0),
    CONSTRAINT windows_within_cap CHECK (spent + held <= cap)
) WITH (fillfactor = 50);
CREATE TABLE holds (
    request_id text PRIMARY KEY,
    key_id text NOT NULL,
    project text NOT NULL,
    claim text,
    node text NOT NULL,
    incarnation text NOT NULL,
    windows bigint[] NOT NULL,
    packed bytea NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX holds_by_node ON holds (node, incarnation);
CREATE TABLE usage_records (
    chain integer NOT NULL,
    position bigint NOT NULL,
    seq bigint NOT NULL,
    batch bigint NOT NULL,
    request_id text NOT NULL UNIQUE,
    organization_id text NOT NULL, project_id text NOT NULL, key_id text NOT NULL, model text NOT NULL,
    task text NOT NULL, backend text NOT NULL, outcome text NOT NULL, source text NOT NULL,
    {", ".join(f"{name} bigint NOT NULL" for name in _COUNTS)},
    price text,
    held bigint NOT NULL, cost bigint NOT NULL, overrun bigint NOT NULL,
    billed integer NOT NULL, flagged integer NOT NULL,
    admitted_us bigint NOT NULL, first_byte_us bigint, finished_us bigint NOT NULL,
    claim text,
    detail bytea NOT NULL,
    digest bytea NOT NULL,
    PRIMARY KEY (chain, seq),
    CONSTRAINT records_within_hold CHECK (cost >= 0 AND overrun >= 0 AND cost <= held)
);
CREATE INDEX usage_records_by_position ON usage_records (position);
COMMENT ON COLUMN usage_records.position IS
    'deployment.position_from + transaction id * 256 + place in the batch: the order of all nodes'' records.';
CREATE TABLE voids (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain integer NOT NULL,
    batch bigint NOT NULL,
    request_id text NOT NULL UNIQUE,
    key_id text NOT NULL,
    at_us bigint NOT NULL,
    detail bytea NOT NULL,
    digest bytea NOT NULL
);
CREATE INDEX voids_by_chain ON voids (chain, seq);
CREATE TABLE claims (
    project text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    request_id text NOT NULL,
    state text NOT NULL CHECK (state IN ('open', 'stored', 'released', 'spent')),
    expires_us bigint NOT NULL,
    reruns integer NOT NULL,
    PRIMARY KEY (project, key)
) WITH (fillfactor = 70);
CREATE INDEX claims_by_expiry ON claims (expires_us);
CREATE TABLE answers (
    request_id text PRIMARY KEY,
    answer bytea NOT NULL,
    expires_us bigint NOT NULL
);
CREATE INDEX answers_by_expiry ON answers (expires_us);
CREATE TABLE audit_log (
    chain integer NOT NULL,
    id bigint PRIMARY KEY,
    batch bigint NOT NULL,
    at_us bigint NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    detail text NOT NULL,
    digest bytea NOT NULL
);
CREATE TABLE links (
    chain integer NOT NULL,
    number bigint NOT NULL,
    at_us bigint NOT NULL,
    admitted integer NOT NULL,
    extended integer NOT NULL,
    recorded integer NOT NULL,
    voided integer NOT NULL,
    link bytea NOT NULL,
    PRIMARY KEY (chain, number)
);
CREATE FUNCTION headgate_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
"""


def upgrade() -> None:
    """Make everything."""
    whole = {"no_parameters": True}  # many statements at once, and per cent signs that stand for themselves
    op.get_bind().exec_driver_sql(_FIRST, execution_options=whole)
    for table in _APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION headgate_append_only()"
        )
