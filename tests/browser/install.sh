#!/bin/sh
# Sees to it that Chromium and its driver are here: Debian's, installed by apt-get where that is allowed.
# Exit status 0: they are.  1: they are not, and a sentence says why.
here() { command -v chromedriver >/dev/null && { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; }
here && exit 0
if ! command -v apt-get >/dev/null; then
    echo "browser tests need chromium and chromedriver, which are not installed, and there is no apt-get to install them"
    exit 1
fi
install() { timeout 600 apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends chromium chromium-driver >/dev/null 2>&1; }
install || { timeout 300 apt-get -qq update >/dev/null 2>&1 && install; }
here && exit 0
echo "browser tests need chromium and chromedriver; apt-get install chromium chromium-driver failed (root and a network?)"
exit 1
