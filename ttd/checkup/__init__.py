"""What ``ttd/doctor.py`` looks at: each check is one small function that measures something and returns a finding."""
