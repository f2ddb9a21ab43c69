# Counts the words on standard input: the most frequent first, ties in order of the words.
counts = $stdin.read.split.tally
counts.sort_by { |word, count| [-count, word] }.each { |word, count| puts "#{count} #{word}" }
