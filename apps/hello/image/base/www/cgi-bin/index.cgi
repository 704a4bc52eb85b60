#!/bin/sh
. /www/cgi-bin/facts
escaped=$(printf '%s' "$greeting" | sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g')
printf 'Content-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\n\r\n'
cat <<HTML
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>hello $version</title>
<style>
body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto 0; padding: 0 1.5rem; color: #1d2a35 }
h1 { font-size: 3rem; margin: 0 } strong { font-variant-numeric: tabular-nums }
@media (prefers-color-scheme: dark) { body { background: #12181d; color: #dfe7ec } }
</style>
<h1>$escaped</h1>
<p>This is hello version <strong>$version</strong>.</p>
<p>It was started <strong>$starts</strong> time(s) since its volume was made.</p>
</html>
HTML
