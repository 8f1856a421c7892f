-- Mixes GET, PUT and DELETE, for wrk and wrk2. scripts/lib.lua lists the arguments; --reads and
-- --deletes are shares:
--   wrk -t1 -c64 -d10s -s scripts/mix.lua http://127.0.0.1:1337 -- \
--     --keys 100000 --reads 0.9 --deletes 0.01
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
dofile(here .. "lib.lua").run(function(options)
   local dice = math.random()
   if dice < options["reads"] then return "GET" end
   if dice < options["reads"] + options["deletes"] then return "DELETE" end
   return "PUT"
end)
