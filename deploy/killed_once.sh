# For the tries of engines: killed_once VARIABLE A B writes $work/esmerge, which is $program, but that the first run of the shares A
# and B, of which VARIABLE is the number, is killed while it works.
killed_once() {
  cat >"$work/esmerge" <<RUN
#!/usr/bin/env bash
case \${$1:-} in
  $2 | $3)
    mark=$work/killed-\$$1
    if [ ! -e \$mark ]; then
      touch \$mark
      "$program" "\$@" & run=\$!
      sleep 0.05; kill -KILL \$run; wait \$run; exit \$?
    fi ;;
esac
exec "$program" "\$@"
RUN
  chmod +x "$work/esmerge"
}
