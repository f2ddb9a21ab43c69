-- Counts the words on standard input: the most frequent first, ties in order of the words.
local counts, words = {}, {}
for word in io.read("a"):gmatch("%S+") do
    if not counts[word] then words[#words + 1] = word end
    counts[word] = (counts[word] or 0) + 1
end
table.sort(words, function(a, b)
    if counts[a] ~= counts[b] then return counts[a] > counts[b] end
    return a < b
end)
for _, word in ipairs(words) do print(counts[word] .. " " .. word) end
