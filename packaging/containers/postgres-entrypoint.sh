#!/bin/bash
# A stand-in for the entry point of the postgres image: one database, one user, by environment.
set -e
export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data
mkdir -p $PGDATA /run/postgresql; chown -R postgres $PGDATA /run/postgresql; chmod 700 $PGDATA
if [ ! -s $PGDATA/PG_VERSION ]; then
  echo "$POSTGRES_PASSWORD" > /tmp/pw
  gosu postgres initdb -U $POSTGRES_USER --pwfile=/tmp/pw --auth-host=scram-sha-256 --auth-local=trust
  echo 'host all all all scram-sha-256' >> $PGDATA/pg_hba.conf
  gosu postgres pg_ctl -w -o '-c listen_addresses=' start
  [ $POSTGRES_DB = postgres ] || gosu postgres createdb -U $POSTGRES_USER $POSTGRES_DB
  gosu postgres pg_ctl -w stop
fi
exec gosu postgres "$@"
