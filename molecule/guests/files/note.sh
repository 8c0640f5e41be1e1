#!/bin/sh
# Run in a spawned kernel, by the module script.
echo "noted of $1" >/var/lib/note
