-- Puts and gets through the JSON gateway of etcd's v3 API, with the keys and values of put.lua and
-- get.lua, for wrk:
--   wrk -t1 -c64 -d10s -s scripts/etcd.lua http://127.0.0.1:2379 -- --keys 10000 --reads 0
-- scripts/lib.lua lists the arguments. --reads 0 puts, --reads 1 gets; --serializable lets the node
-- that is asked answer gets by itself.
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"

local DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(text)
   local groups = {}
   for i = 1, #text, 3 do
      local a, b, c = text:byte(i, i + 2)
      local bits = a * 65536 + (b or 0) * 256 + (c or 0)
      local group = ""
      for shift = 3, 0, -1 do
         local digit = math.floor(bits / 64 ^ shift) % 64 + 1
         group = group .. DIGITS:sub(digit, digit)
      end
      groups[#groups + 1] = c and group or b and group:sub(1, 3) .. "=" or group:sub(1, 2) .. "=="
   end
   return table.concat(groups)
end

local function formatter(method, options)
   local prefix = ("k"):rep(options["key-size"] - 8)
   local filler = ("v"):rep(options["size"] - 8)
   local headers = { ["Content-Type"] = "application/json" }
   local serializable = options["serializable"] and ',"serializable":true' or ""
   return function(number)
      local digits = ("%08d"):format(number)
      local key = base64(prefix .. digits)
      if method == "PUT" then
         local value = base64((filler .. digits):sub(-options["size"]))
         return wrk.format("POST", "/v3/kv/put", headers, ('{"key":"%s","value":"%s"}'):format(key, value))
      end
      return wrk.format("POST", "/v3/kv/range", headers, ('{"key":"%s"%s}'):format(key, serializable))
   end
end

dofile(here .. "lib.lua").run(function(options)
   return math.random() < options["reads"] and "GET" or "PUT"
end, formatter)
