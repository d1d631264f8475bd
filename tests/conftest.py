"""Has the fixtures loaded, and TensorFlow with them, by the processes that run tests."""


def pytest_collection(session):
    # xdist starts those from one that collects nothing: a wait for TensorFlow there
    # would come before theirs.
    session.config.pluginmanager.import_plugin("keras_fixtures")
