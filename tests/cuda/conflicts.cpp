// See conflicts.h.
#include "conflicts.h"

#include <algorithm>

namespace cuda_cpu {

void Conflicts::add(unsigned rank, unsigned step, const volatile void* word) {
    Lane& lane = lanes[rank];
    lane.atomics = lane.step == step ? lane.atomics + 1 : 1;
    lane.step = step;
    words_of[uint64_t{rank / 32} << 48 | uint64_t{lane.atomics} << 32 | step].push_back(word);
}

void Conflicts::end_block() {
    for (auto& [instruction, words] : words_of) {
        std::ranges::sort(words);
        uint64_t most = 0;
        for (auto word = words.begin(); word != words.end();) {
            auto next = std::upper_bound(word, words.end(), *word);
            most = std::max<uint64_t>(most, next - word);
            word = next;
        }
        passes += {1, words.size(), most};
    }
    words_of.clear();
}

}  // namespace cuda_cpu
