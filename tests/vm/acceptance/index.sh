#!/bin/sh
# Makes what the server serves, in the working directory: index.sh PORT.
set -eu
origin=https://127.0.0.2:$1

# A package of Python, and the index that lists it.
mkdir -p site/files wheel/kiln_hello wheel/kiln_hello-1.0.dist-info site/simple/kiln-hello
echo 'print("hello from pip")' >wheel/kiln_hello/__init__.py
printf 'Metadata-Version: 2.1\nName: kiln-hello\nVersion: 1.0\n' >wheel/kiln_hello-1.0.dist-info/METADATA
printf 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n' >wheel/kiln_hello-1.0.dist-info/WHEEL
printf 'kiln_hello/__init__.py,,\nkiln_hello-1.0.dist-info/%s,,\n' METADATA >wheel/kiln_hello-1.0.dist-info/RECORD
wheel=kiln_hello-1.0-py3-none-any.whl
(cd wheel && python3 -m zipfile -c "../site/files/$wheel" kiln_hello kiln_hello-1.0.dist-info)
digest=$(sha256sum "site/files/$wheel" | cut -d ' ' -f 1)
echo "<!DOCTYPE html><a href=\"$origin/files/$wheel#sha256=$digest\">$wheel</a>" >site/simple/kiln-hello/index.html

# A package of Node, and its registry.
mkdir -p package site/npm
printf '{ "name": "kiln-hello", "version": "1.0.0", "main": "index.js" }\n' >package/package.json
echo 'console.log("hello from npm")' >package/index.js
tar -czf site/files/kiln-hello-1.0.0.tgz package
integrity=sha512-$(openssl dgst -sha512 -binary site/files/kiln-hello-1.0.0.tgz | base64 -w 0)
cat >site/npm/kiln-hello <<END
{ "name": "kiln-hello", "dist-tags": { "latest": "1.0.0" }, "versions": { "1.0.0": {
  "name": "kiln-hello", "version": "1.0.0",
  "dist": { "tarball": "$origin/files/kiln-hello-1.0.0.tgz", "integrity": "$integrity" } } } }
END

echo 'hello from a file' >site/files/hello.txt

# Repositories: one with enough tags that a request for all of them is compressed, and its submodule.
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.org
export GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.org
git init -q -b main lib
echo 'hello from a submodule' >lib/hello
git -C lib add hello
git -C lib commit -q -m lib
git init -q -b main web
for number in $(seq 40); do
	echo "hello $number from git" >web/hello
	git -C web add hello
	git -C web commit -q -m "$number"
	git -C web tag -a -m "$number" "v$number"
done
git clone -q --bare lib site/lib.git
git -C web -c protocol.file.allow=always submodule --quiet add "$PWD/site/lib.git" lib
git -C web config -f .gitmodules submodule.lib.url "$origin/lib.git"
git -C web commit -q -a -m submodule
git clone -q --bare web site/web.git
# It takes what is pushed: only kiln refuses that.
git -C site/web.git config http.receivepack true
