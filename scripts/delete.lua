-- Sends DELETE for keys all over the key space, for wrk and wrk2. scripts/lib.lua lists the
-- arguments:
--   wrk -t1 -c64 -d10s -s scripts/delete.lua http://127.0.0.1:1337 -- --keys 100000
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
dofile(here .. "lib.lua").run("DELETE")
