"""placeholder"""
def report(entries, to): pass
