#include "json.h"

#include <cctype>
#include <cstdlib>
#include <stdexcept>

namespace cuda_double {
namespace {

class Parser {
public:
    explicit Parser(const std::string& source) : at_(source.c_str()), end_(at_ + source.size()) {}

    Json whole() {
        Json value = next();
        skip_space();
        if (at_ != end_) fail();
        return value;
    }

private:
    const char* at_;
    const char* end_;

    [[noreturn]] static void fail() { throw std::runtime_error("not JSON"); }

    void skip_space() {
        while (at_ != end_ && std::isspace(static_cast<unsigned char>(*at_))) ++at_;
    }

    bool take(char expected) {
        skip_space();
        if (at_ == end_ || *at_ != expected) return false;
        ++at_;
        return true;
    }

    bool take_word(const std::string& word) {
        if (static_cast<size_t>(end_ - at_) < word.size() || std::string(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json next() {
        skip_space();
        if (at_ == end_) fail();
        Json value;
        if (take('{')) {
            value.kind = Json::Kind::Object;
            while (!take('}')) {
                skip_space();
                std::string name = string();
                if (!take(':')) fail();
                value.object[name] = next();
                if (!take(',') && (at_ == end_ || *at_ != '}')) fail();
            }
        } else if (take('[')) {
            value.kind = Json::Kind::List;
            while (!take(']')) {
                value.list.push_back(next());
                if (!take(',') && (at_ == end_ || *at_ != ']')) fail();
            }
        } else if (*at_ == '"') {
            value.kind = Json::Kind::Text;
            value.text = string();
        } else if (take_word("true") || take_word("false")) {
            value.kind = Json::Kind::Boolean;
            value.boolean = at_[-2] == 'u';
        } else if (!take_word("null")) {
            number(value);
        }
        return value;
    }

    void number(Json& value) {
        char* whole_end = nullptr;
        char* end = nullptr;
        value.kind = Json::Kind::Number;
        value.number = std::strtod(at_, &end);
        if (end == at_) fail();
        value.integer = std::strtoll(at_, &whole_end, 10);
        if (whole_end != end) value.integer = static_cast<long long>(value.number);
        at_ = end;
    }

    // The scripts' texts are names and paths: an escape stands for the character behind it.
    std::string string() {
        if (!take('"')) fail();
        std::string text;
        while (at_ != end_ && *at_ != '"') {
            if (*at_ == '\\' && ++at_ == end_) fail();
            text.push_back(*at_++);
        }
        if (at_ == end_) fail();
        ++at_;
        return text;
    }
};

}  // namespace

std::optional<Json> Json::parse(const std::string& source) {
    try {
        return Parser(source).whole();
    } catch (const std::runtime_error&) {
        return std::nullopt;
    }
}

const Json& Json::operator[](const std::string& name) const {
    static const Json nothing;
    auto found = object.find(name);
    return found == object.end() ? nothing : found->second;
}

}  // namespace cuda_double
