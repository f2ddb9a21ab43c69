// Counts the words on standard input: the most frequent first, ties in order of the words.
#include <algorithm>
#include <iostream>
#include <map>
#include <string>
#include <vector>

int main() {
    std::map<std::string, long> counts;
    for (std::string word; std::cin >> word;) ++counts[word];
    std::vector<std::pair<std::string, long>> sorted(counts.begin(), counts.end());
    std::stable_sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.second > b.second; });
    for (auto& [word, count] : sorted) std::cout << count << ' ' << word << '\n';
}
