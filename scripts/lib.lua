-- What put.lua, get.lua, delete.lua and mix.lua share: arguments, preformatted requests, the last
-- line of the output.
--
-- All of them run under wrk and wrk2 alike:
--   wrk  -t1 -c64 -d10s          -s scripts/put.lua http://127.0.0.1:1337 -- --keys 100000 --size 128
--   wrk2 -t4 -c64 -d60s -R10000 -L -s scripts/get.lua http://127.0.0.1:1337 -- --ack 2 --from 3
--
-- Arguments, after the `--`, all optional:
--   --keys N        key space (100000)
--   --key-size N    bytes a key, 8 to 4096 (16): letters k, then eight digits (as scripts/load.py
--                   writes them)
--   --size N        bytes a value (128)
--   --ack A --from F --ttl MS   these go into the query as they are (absent)
--   --pipeline P    requests that one connection sends at once (1; wrk2 counts its rate in
--                   requests, too)
--   --reads R --deletes D       mix.lua only: shares of GET and DELETE (0.5 and 0); the rest is PUT
--   --pool N        most requests that a thread keeps preformatted (100000; 10000 under wrk2, see
--                   below)
--   --serializable  etcd.lua only: lets the node that is asked answer a get by itself
--   --statuses      counts every status code apart (this parses each answer in Lua and slows the
--                   load tool, so it is not for measuring rates)
--
-- The load tool must not be the bottleneck, so all requests are formatted before the run, and
-- request() only walks through the pool: about 0.1 us of Lua a call. While the key space fits into
-- the pool, the pool is one shuffle of all the keys, so that every key is used equally often; where
-- it does not fit, the pool is random picks. The pool is also cut at POOL_BYTES_MAX. 100 000 PUTs
-- of 128 bytes are 21 MB, read in order, which the hardware prefetches. wrk2 carries LuaJIT 2.0,
-- which hashes only a few bytes of a string: interning many requests that differ only in the middle
-- takes quadratic time (100 000 of them: minutes). Hence its smaller pool.

local lib = {}

local POOL_BYTES_MAX = 64 * 1024 * 1024

local DEFAULTS = {
   ["keys"] = 100000, ["key-size"] = 16, ["size"] = 128, ["pipeline"] = 1,
   ["pool"] = jit.version_num >= 20100 and 100000 or 10000,
   ["reads"] = 0.5, ["deletes"] = 0,
   ["ack"] = false, ["from"] = false, ["ttl"] = false, ["statuses"] = false, ["serializable"] = false,
}

local function fail(sentence)
   io.stderr:write(sentence, "\n")
   os.exit(2)
end

-- The table of options from wrk's args; args[0] is the URL.
local function parse(args)
   local options = {}
   for name, value in pairs(DEFAULTS) do options[name] = value end
   local i = 1
   while args[i] do
      local name = args[i]:match("^%-%-(.+)$")
      if not name or DEFAULTS[name] == nil then
         fail("unknown argument " .. args[i] .. "; scripts/lib.lua lists the known ones")
      end
      if name == "statuses" or name == "serializable" then
         options[name] = true
      else
         i = i + 1
         options[name] = tonumber(args[i])
         if not options[name] then
            fail("--" .. name .. " needs a number, not " .. tostring(args[i]))
         end
      end
      i = i + 1
   end
   if options["keys"] < 1 or options["keys"] > 99999999 then fail("--keys must be 1 to 99999999") end
   if options["key-size"] < 8 or options["key-size"] > 4096 then fail("--key-size must be 8 to 4096") end
   if options["pipeline"] < 1 then fail("--pipeline must be at least 1") end
   if options["reads"] + options["deletes"] > 1 then fail("--reads and --deletes together are more than 1") end
   return options
end

-- Returns a function that formats one request of `method` for the number of a key.
local function formatter(method, options)
   local prefix = ("k"):rep(options["key-size"] - 8)
   local filler = ("v"):rep(options["size"] - 8)
   local tail = ""
   for _, name in ipairs({ "ack", "from" }) do
      if options[name] then tail = tail .. "&" .. name .. "=" .. options[name] end
   end
   if method == "PUT" and options["ttl"] then tail = tail .. "&ttl=" .. options["ttl"] end
   return function(number)
      local digits = ("%08d"):format(number)
      local body = method == "PUT" and (filler .. digits):sub(-options["size"]) or nil
      return wrk.format(method, "/v0/entity?id=" .. prefix .. digits .. tail, {}, body)
   end
end

-- The numbers of the keys that the pool contains, in the order of use.
local function pick_keys(keys, pool_size)
   local numbers = {}
   if keys <= pool_size then
      for i = 1, keys do numbers[i] = i - 1 end
      for i = keys, 2, -1 do
         local j = math.random(i)
         numbers[i], numbers[j] = numbers[j], numbers[i]
      end
   else
      for i = 1, pool_size do numbers[i] = math.random(0, keys - 1) end
   end
   return numbers
end

-- Strings of `pipeline` requests each. `choose` is the method of every request, or a function that
-- returns the next one.
local function build_pool(options, choose, make_formatter)
   local format = {}
   for _, method in ipairs({ "GET", "PUT", "DELETE" }) do format[method] = make_formatter(method, options) end
   local pipeline = options["pipeline"]
   local pool, batch, bytes = {}, {}, 0
   local numbers = pick_keys(options["keys"], options["pool"])
   local i = 0
   while (i < #numbers and bytes < POOL_BYTES_MAX) or #batch > 0 or #pool == 0 do
      local method = type(choose) == "string" and choose or choose(options)
      local request = format[method](numbers[i % #numbers + 1])
      i = i + 1
      bytes = bytes + #request
      batch[#batch + 1] = request
      if #batch == pipeline then
         pool[#pool + 1] = table.concat(batch)
         batch = {}
      end
   end
   return pool
end

-- Defines wrk's hooks. Each script calls it once in every Lua state, of which wrk makes one for
-- each thread and one for itself. `make_formatter` is `formatter` by default.
function lib.run(choose, make_formatter)
   local threads = {}

   function setup(thread)
      threads[#threads + 1] = thread
      thread:set("thread_number", #threads)
   end

   function init(args)
      local options = parse(args)
      math.randomseed(thread_number)
      local pool = build_pool(options, choose, make_formatter or formatter)
      local size, at = #pool, 0
      collectgarbage()

      function request()
         at = at + 1
         if at > size then at = 1 end
         return pool[at]
      end

      ready_clock = os.clock()
      statuses = false
      if options["statuses"] then
         statuses = {}
         function response(status)
            statuses[tostring(status)] = (statuses[tostring(status)] or 0) + 1
         end
      end
   end

   -- wrk counts statuses from 400 on as errors. Nothing that these scripts send is answered 1xx or
   -- 3xx.
   function done(summary)
      local errors = summary.errors
      print(("answers: %d in %.3f s, %d not 2xx, socket errors: %d connect, %d read, %d write, %d timeout"):format(
         summary.requests, summary.duration / 1e6, errors.status,
         errors.connect, errors.read, errors.write, errors.timeout))
      local ready_clock = 0
      for _, thread in ipairs(threads) do ready_clock = math.max(ready_clock, thread:get("ready_clock")) end
      print(("load tool: %.3f s of CPU, and before that %.3f s to format requests"):format(
         os.clock() - ready_clock, ready_clock))
      local total = {}
      for _, thread in ipairs(threads) do
         for status, count in pairs(thread:get("statuses") or {}) do total[status] = (total[status] or 0) + count end
      end
      local line = {}
      for status, count in pairs(total) do line[#line + 1] = status .. ": " .. count end
      table.sort(line)
      if #line > 0 then print("statuses: " .. table.concat(line, ", ")) end
   end
end

return lib
