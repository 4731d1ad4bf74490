"""`python -m kvasir` is `kvasir`."""

from kvasir.cli.main import main

raise SystemExit(main())
