# Counts the words on standard input: the most frequent first, ties in order of the words.
use strict;
use warnings;

my %counts;
while (my $line = <STDIN>) {
    $counts{$_}++ for split ' ', $line;
}
for my $word (sort { $counts{$b} <=> $counts{$a} || $a cmp $b } keys %counts) {
    print "$counts{$word} $word\n";
}
