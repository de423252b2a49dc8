#!/bin/sh
# Exit 0 when this node's API server is ready to take requests; keepalived moves the address when it is not.
exec curl --silent --fail --output /dev/null --max-time {{ timers.vip_timeout_s }} \
    --cacert /etc/kubernetes/pki/ca.pem https://127.0.0.1:6443/readyz
