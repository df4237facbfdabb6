"""The local stack: the servers and services that `orderstream up` starts, watches and stops on one machine."""
