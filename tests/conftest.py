"""Options of the test run."""


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-cases",
        type=int,
        help="draw so many new cases of bad input for each class (tests/promises/test_fuzz.py)",
    )
